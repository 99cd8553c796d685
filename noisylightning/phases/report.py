"""What a fit says of T-hat, and leaves of it in the run's folder."""

from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from noisylightning import internals
from noisylightning.functional.bootstrap import expected_l1_error
from noisylightning.functional.names import names_warning
from noisylightning.phases.base import Fit
from noisylightning.run_folder import run_folder
from noisylightning.transition import relative_l1_error
from noisylightning.transition_files import publish_transition


def report(fit: Fit, source: str, counts: Tensor, doubt: str | None = None) -> None:
    """Say what T-hat is, save it, and warn of what speaks against it or cannot be known.

    Args:
        fit: The fit, with T-hat in its memory.
        source: Where it comes from.
        counts: How many samples carry each label, shape ``(C,)``.
        doubt: In a clause, what contradicts it.
    """
    trainer, transition, standard_error = fit.trainer, fit.memory.transition, fit.memory.standard_error
    assert transition is not None
    true = internals.data_attribute(trainer, "transition")
    names = internals.data_attribute(trainer, "class_names")
    error = "" if true is None else f"; relative L1 error {relative_l1_error(transition, true.cpu()):.4f}"
    if standard_error is not None:
        error += f"; {expected_l1_error(standard_error):.4f} expected by its standard errors"
    saved = ""
    if not internals.dev_batches(trainer):
        folder = run_folder(trainer)
        if trainer.is_global_zero:
            publish_transition(transition, true, folder, trainer.loggers, trainer.global_step, names, standard_error)
        saved = f"; saved in {folder}"
    rank_zero_info(f"T estimated ({source}){error}{saved}.")
    if doubt is not None:
        rank_zero_warn(
            f"T-hat contradicts the evidence: {doubt}; estimate it from weights that fit the noisy labels neither"
            " too little nor by heart (monitor, stage_one_epochs), or with another estimator."
        )
    elif trainer.is_global_zero and not fit.memory.named:
        unnamed = names_warning(transition, counts, names)
        if unnamed is not None:
            rank_zero_warn(unnamed)
