"""Leaving parts of a network as they are while the rest is trained.

Parameters are named by their path below `params`, such as `backbone/res2_0/conv1`; a
prefix of a path, such as `backbone/res2`, names all that begin with it.
"""

from collections.abc import Sequence
from typing import Any

import jax


def frozen_mask(trained: Any, prefixes: Sequence[str]) -> Any:
    """Tell which parameters are frozen.

    Args:
        trained: the collection `params` of a variables dict.
        prefixes: of the paths to freeze.

    Returns:
        A tree of the same form, True where frozen.

    Raises:
        ValueError: a prefix names nothing.

    Example:
        >>> frozen_mask({"backbone": {"conv1": 1}, "rpn": {"rpn_conv": 2}}, ["back"])
        {'backbone': {'conv1': True}, 'rpn': {'rpn_conv': False}}
    """
    paths, tree = jax.tree.flatten_with_path(trained)
    names = ["/".join(key.key for key in path) for path, _ in paths]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            known = sorted({"/".join(name.split("/")[:2]) for name in names})
            raise ValueError(
                f"freeze names {prefix!r}, and no parameter begins so; there are "
                f"{', '.join(known)}"
            )
    return tree.unflatten([name.startswith(tuple(prefixes)) for name in names])


def stop_frozen(params: Any, prefixes: Sequence[str]) -> Any:
    """Cut the gradient to frozen parameters, so that no time goes into it.

    Args:
        params: a variables dict.
        prefixes: of the paths to freeze, below `params["params"]`.

    Returns:
        The same variables.
    """
    if not prefixes:
        return params
    trained = jax.tree.map(
        lambda x, frozen: jax.lax.stop_gradient(x) if frozen else x,
        params["params"],
        frozen_mask(params["params"], prefixes),
    )
    return {**params, "params": trained}
