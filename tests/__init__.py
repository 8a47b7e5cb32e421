"""The tests, and the run-time type checker that they put the library under."""

from beartype import BeartypeConf, beartype

# Named in pyproject's --jaxtyping-packages. An int passes for a float, as it does for
# static type checkers.
typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))
