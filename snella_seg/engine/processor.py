"""What of this machine's processor decides how products are made."""

import re
from functools import lru_cache
from pathlib import Path

#: The family of AMD's processors of Zen 5.
ZEN_5 = 26


@lru_cache(maxsize=1)
def is_zen_5() -> bool:
    """Whether this is one of AMD's processors from Zen 5 on with AVX-512.

    Measured on an EPYC, which takes a vector of 512 bits in one piece. Zen 4 takes it in two
    halves; Zen 5 for notebooks is said to do so, too, and counts as Zen 5 here.
    """
    try:
        about = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    family = re.search(r"^cpu family\s*:\s*(\d+)", about, re.MULTILINE)
    found = family is not None and int(family[1]) >= ZEN_5
    return found and "avx512f" in about and "AuthenticAMD" in about
