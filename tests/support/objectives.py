"""An objective for each option of the cost, and one with all of them."""

from fastae import Objective

OBJECTIVES = {
    "alpha": Objective(alpha=5.0),
    "sparse": Objective(sparsity_weight=7.0, sparsity_target=0.1),
    "gaussian": Objective(noise="gaussian", noise_level=0.5),
    "mask": Objective(noise="mask", noise_level=0.3),
    "swap": Objective(noise="swap", noise_level=0.3),
    "missing": Objective(missing=True),
    "all": Objective(
        alpha=1.0, sparsity_weight=0.3, sparsity_target=0.2, noise="gaussian", noise_level=0.2, missing=True
    ),
}
