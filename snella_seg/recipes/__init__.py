"""What makes configs: of a stock one, of one's own data. Needs mmengine only when it is called."""

from .data import colours, own_data
from .difference import config_text
from .wrap import own_rules, wrap_config

__all__ = ["colours", "config_text", "own_data", "own_rules", "wrap_config"]
