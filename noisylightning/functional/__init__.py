"""Pure tensor mathematics: corrected and base losses, and what a posterior and T say, as functions."""

from noisylightning.functional.anchor import anchor_transition
from noisylightning.functional.audit import (
    ExpectedErrors,
    LabelAudit,
    audit_labels,
    clean_log_probs,
    error_sums,
    expected_errors,
    label_posterior,
)
from noisylightning.functional.backward import backward_cross_entropy, inverse_rows
from noisylightning.functional.bootstrap import expected_l1_error
from noisylightning.functional.checks import validate_target
from noisylightning.functional.class_conditional import ClassConditionalTest, class_conditional_test
from noisylightning.functional.clean_accuracy import (
    Estimate,
    clean_accuracy,
    clean_accuracy_difference,
    clean_confusion_matrix,
    condition_warning,
    count_pairs,
)
from noisylightning.functional.confident_joint import confident_joint_transition
from noisylightning.functional.crowd import DawidSkene, dawid_skene
from noisylightning.functional.dual import dual_transition
from noisylightning.functional.forward import forward_cross_entropy, noisy_log_likelihood, noisy_log_posterior
from noisylightning.functional.losses import (
    early_learning_regularization,
    focal_loss,
    generalized_cross_entropy,
    hard_bootstrap,
    label_loss,
    label_smoothing,
    mean_absolute_error,
    normalized_cross_entropy,
    ramp_loss,
    reverse_cross_entropy,
    savage_loss,
    sigmoid_loss,
    soft_bootstrap,
    square_loss,
    symmetric_cross_entropy,
    truncated_generalized_cross_entropy,
    unhinged_loss,
)
from noisylightning.functional.memorisation import (
    accuracy_ceiling,
    expected_wrong_labels,
    loss_floor,
    memorised_share,
    wrong_label_probability,
)
from noisylightning.functional.mixing import cutmix, cutmix_box, mix_labels, mixup, pair_alike
from noisylightning.functional.names import (
    clean_priors,
    decide_names,
    exchangeable,
    name_rows,
    names_warning,
    same_up_to_names,
)
from noisylightning.functional.posterior import clean_log_posterior, importance_weights
from noisylightning.functional.prediction_powered import prediction_powered_accuracy, prediction_powered_mean
from noisylightning.functional.tempered import bi_tempered_loss, log_tempered_softmax
from noisylightning.functional.trusted import trusted_transition
from noisylightning.functional.verdict import Verdict, judge
from noisylightning.tensors import expectation, log_softmax, pick
from noisylightning.transition import invert_transition

__all__ = [
    "ClassConditionalTest",
    "DawidSkene",
    "Estimate",
    "ExpectedErrors",
    "LabelAudit",
    "Verdict",
    "accuracy_ceiling",
    "anchor_transition",
    "audit_labels",
    "backward_cross_entropy",
    "bi_tempered_loss",
    "class_conditional_test",
    "clean_accuracy",
    "clean_accuracy_difference",
    "clean_confusion_matrix",
    "clean_log_posterior",
    "clean_log_probs",
    "clean_priors",
    "condition_warning",
    "confident_joint_transition",
    "count_pairs",
    "cutmix",
    "cutmix_box",
    "dawid_skene",
    "decide_names",
    "dual_transition",
    "early_learning_regularization",
    "error_sums",
    "exchangeable",
    "expectation",
    "expected_errors",
    "expected_l1_error",
    "expected_wrong_labels",
    "focal_loss",
    "forward_cross_entropy",
    "generalized_cross_entropy",
    "hard_bootstrap",
    "importance_weights",
    "inverse_rows",
    "invert_transition",
    "judge",
    "label_loss",
    "label_posterior",
    "label_smoothing",
    "log_softmax",
    "log_tempered_softmax",
    "loss_floor",
    "mean_absolute_error",
    "memorised_share",
    "mix_labels",
    "mixup",
    "name_rows",
    "names_warning",
    "noisy_log_likelihood",
    "noisy_log_posterior",
    "normalized_cross_entropy",
    "pair_alike",
    "pick",
    "prediction_powered_accuracy",
    "prediction_powered_mean",
    "ramp_loss",
    "reverse_cross_entropy",
    "same_up_to_names",
    "savage_loss",
    "sigmoid_loss",
    "soft_bootstrap",
    "square_loss",
    "symmetric_cross_entropy",
    "truncated_generalized_cross_entropy",
    "trusted_transition",
    "unhinged_loss",
    "validate_target",
    "wrong_label_probability",
]
