"""What makes configs: of a stock one, of one's own data. Needs mmengine only when it is called."""

from .difference import config_text
from .wrap import own_rules, wrap_config

__all__ = ["config_text", "own_rules", "wrap_config"]
