"""Rules for single values that several parts of the configuration share. No torch in this module.

Their bounds are far above any use: they catch a slip of the pen.
"""

from __future__ import annotations

from typing import Annotated, Literal

from emigm.config.parsing import Rule, matching, within

Name = Annotated[
    str, matching("[A-Za-z0-9][A-Za-z0-9_-]{0,63}", "be letters, digits, _ and -, and begin with a letter or a digit")
]
"""Of a benchmark, a size or a budget: part of paths, of shell commands and of DVC's keys."""
Text = Annotated[str, Rule(lambda v: v.isprintable() and not v.isspace() and 0 < len(v) <= 1000, "be one line of text")]
"""A title, a path."""
Count = Annotated[int, within("[1, 1000000]")]
Steps = Annotated[int, within("[1, 1000000000]")]
Width = Annotated[int, within("[1, 65536]")]
Blocks = Annotated[int, within("[1, 256]")]
Side = Annotated[int, within("[1, 4096]")]
Codes = Annotated[int, within("[2, 1048576]")]
Rate = Annotated[float, within("(0, 1]")]
Seed = Annotated[int, within("[0, 4294967295]")]
Momentum = Annotated[float, within("[0, 1)")]
Fraction = Annotated[float, within("[0, 1]")]
distinct = Rule(lambda v: 0 < len(v) == len(set(v)), "name at least one, and none twice")
Seeds = Annotated[tuple[Seed, ...], distinct]
Precision = Literal["float32", "tf32", "float16", "bf16"]
"""Of matrix products and convolutions: float32; on a GPU rounded to TensorFloat-32 (the mantissa of float16, the range
of float32; float32 on a CPU); float16 or bfloat16 under autocast, which leaves weights, norms and sums float32."""
