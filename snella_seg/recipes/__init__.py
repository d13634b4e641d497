"""What makes configs: of a stock one, of one's own data. Needs mmengine only when it is called."""

from .difference import config_text
from .own_data import colours, own_data
from .wrapping import own_rules, wrap_config

__all__ = ["colours", "config_text", "own_data", "own_rules", "wrap_config"]
