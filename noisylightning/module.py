"""The LightningModule: any backbone, trained on noisy labels with any correction."""

from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from noisylightning.corrections import Correction, ForwardCorrection, NoCorrection
from noisylightning.errors import BadType, BadValue
from noisylightning.functional.clean_accuracy import Estimate, clean_accuracy
from noisylightning.internals import callbacks, data_attribute, refuse_test_monitors, reseed, standard_error_of
from noisylightning.metrics.memorisation import Memorisation
from noisylightning.metrics.noisy import NoisyMetrics, pair_counts
from noisylightning.models import encoder_parameters, record_features, require_logits
from noisylightning.transition import Transition, relative_l1_error


class NoisyLabelClassifier(LightningModule):
    """A classifier trained on noisy labels.

    The network's softmax is p(clean | x); the correction carries T, T[i, j] = p(noisy = j | clean = i), and turns the
    two into a loss on the noisy labels. Batches are ``(inputs, labels)`` or ``(inputs, labels, index)``, with the index
    of each sample in the training data for the losses that keep state for it; or ``(inputs, labels, index, trusted)``,
    where the loss of samples whose labels are known to be right is the base loss.

    Logged, once an epoch:

    - ``train_loss``, ``val_loss``: the corrected loss on the noisy labels, and the base loss on trusted ones that train
      along, which no other metric counts;
    - ``train_accuracy``, ``val_accuracy``: how often the network's *noisy* prediction, the largest entry of p T, is the
      noisy label. It needs no clean label, and a network that has learnt the clean classes is not punished for it;
    - ``train_memorised``, ``train_accuracy_ceiling``, ``train_loss_floor``, once there is a T of at most 1,000 classes:
      what share of the wrong labels the network has learnt by heart, and the accuracy and, of forward cross-entropy,
      the loss of one that knows the clean classes (:class:`~noisylightning.metrics.Memorisation`), the latter not where
      trusted samples train along;
    - ``val_clean_accuracy``, ``val_clean_accuracy_low``, ``val_clean_accuracy_high``: the accuracy of the clean
      prediction on clean labels as it follows from the noisy ones, and its 95 % interval, once a T is known that is the
      same for every sample, see :func:`~noisylightning.functional.clean_accuracy`; before, it is NaN for callbacks;
    - ``transition_error``: the relative L1 error of a T that learns, where the data module knows the true
      ``transition``;
    - ``test_loss``, ``test_accuracy``, ``test_balanced_accuracy`` (the mean over classes): cross-entropy and accuracies
      of p(clean | x) on the labels of the test set, which are taken to be clean.

    A new architecture is a subclass that overrides :meth:`build_backbone`, or simply a module passed as ``backbone``.

    Args:
        backbone: Network that maps inputs to logits ``(N, C)``; :meth:`build_backbone` makes one where it is left out.
        correction: How T enters the loss; no correction (plain cross-entropy) where it is left out.
        num_classes: Number of classes C; the correction's where it is left out.
        optimizer: Makes the optimizer from the parameters, or from :meth:`parameter_groups` where there are several.
        lr_scheduler: Makes the learning-rate scheduler from the optimizer; stepped once an epoch.
        transition_lr: Learning rate of T, where the correction learns it; the optimizer's where it is left out.
        encoder_lr: Learning rate of the backbone without its head, lower than the head's where the encoder was trained
            before; the optimizer's where it is left out. A schedule that sets rates itself, such as OneCycleLR, needs
            one for each group.
        head_layer: Name of the head in ``backbone.named_modules()``; the last ``nn.Linear`` where it is left out.

    Raises:
        ValueError: If the number of classes is given nowhere, the correction was made for another, a rate is not
            positive, or there is an ``encoder_lr`` but no encoder before the head.
        TypeError: If there is neither a ``backbone`` nor a :meth:`build_backbone`.

    Example:
        >>> from noisylightning.corrections import ForwardCorrection
        >>> model = NoisyLabelClassifier(nn.Linear(4, 3), ForwardCorrection(num_classes=3))
        >>> model(torch.zeros(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        backbone: nn.Module | None = None,
        correction: Correction | None = None,
        num_classes: int | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        transition_lr: float | None = None,
        encoder_lr: float | None = None,
        head_layer: str | None = None,
    ) -> None:
        super().__init__()
        self._seed: int | None = None  # of the fit, from which each epoch's random state is made
        self.correction = NoCorrection() if correction is None else correction
        num_classes = self.correction.num_classes if num_classes is None else num_classes
        if num_classes is None:
            raise BadValue(f"{type(self).__name__} does not know the number of classes: pass num_classes=...")
        for name, rate in (("transition_lr", transition_lr), ("encoder_lr", encoder_lr)):
            if rate is not None and not rate > 0:
                raise BadValue(f"{name} must be positive, got {rate}.")
        self.correction.initialize(num_classes)
        # Objects stay out of checkpoints, which load with weights_only. LightningCLI offers the configuration they
        # were built from instead (recognised by its "_instantiator"), and that is plain data, worth keeping whole.
        objects = ["backbone", "correction", "optimizer", "lr_scheduler"]
        self.save_hyperparameters(ignore=objects, logger=False)
        if "_instantiator" in self.hparams:
            self.save_hyperparameters(logger=False)
        self.hparams["num_classes"] = self.num_classes = num_classes
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.transition_lr = transition_lr
        self.encoder_lr = encoder_lr
        self.head_layer = head_layer
        self.backbone = self.build_backbone() if backbone is None else backbone
        if encoder_lr is not None:
            encoder_parameters(self.backbone, head_layer)  # which it may lack

        self.train_metrics = NoisyMetrics(self.correction, memorisation=Memorisation(num_classes))
        self.val_metrics = NoisyMetrics(self.correction, counts=pair_counts(num_classes, self.correction))
        self.test_metrics = MetricCollection(
            {
                "test_accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
                "test_balanced_accuracy": MulticlassAccuracy(num_classes, average="macro", validate_args=False),
            }
        )
        self.test_loss = MeanMetric(nan_strategy="disable")
        self._outputs_checked = False

    def build_backbone(self) -> nn.Module:
        """Make the network; override this for a new architecture. It is called once, from the constructor."""
        raise BadType(
            f"{type(self).__name__} has no network: pass backbone=..., or override build_backbone() to return one."
        )

    def reset_weights(self) -> None:
        """Draw the weights anew, from :meth:`build_backbone`: ``EstimateTransitionCallback(reinit="fresh")`` asks this.

        Raises:
            TypeError: If the network was passed in, so that nothing says how another is made.
        """
        self.backbone.load_state_dict(self.build_backbone().state_dict())

    def forward(self, inputs: Any) -> Tensor:
        """Return the logits of the clean classes, ``(N, C)``."""
        return self.backbone(inputs)

    def logits_of(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the network on a batch, once, and tell beside its logits what a T of the sample is to know.

        Args:
            batch: ``(inputs, labels)``, ``(inputs, labels, index)`` or ``(inputs, labels, index, trusted)``.

        Returns:
            The logits of the clean classes, ``(N, C)``; and by their names, as the correction takes them, ``index`` and
            ``trusted``, where there are such, and ``features``, what goes into the backbone's last ``nn.Linear``, where
            T needs them.

        Example:
            >>> model = NoisyLabelClassifier(nn.Linear(4, 3), num_classes=3)
            >>> logits, of_samples = model.logits_of((torch.zeros(2, 4), torch.tensor([0, 2])))
            >>> logits.shape, of_samples
            (torch.Size([2, 3]), {})
        """
        inputs, _, *rest = batch
        of_samples = dict(zip(("index", "trusted"), rest, strict=False))
        if not self.correction.needs_features:
            return self(inputs), of_samples
        with record_features(self.backbone) as features:
            logits = self(inputs)
        return logits, {**of_samples, "features": features(len(logits))}

    def on_fit_start(self) -> None:
        """Take the fit's seed; refuse a correction that would train without a T, if no callback is to give it one.

        Raises:
            RuntimeError: If neither the correction nor a callback has a T.
            ValueError: If a callback or schedule would choose by clean test data.
        """
        refuse_test_monitors(self.trainer)
        if not any(getattr(peer, "provides_transition", False) for peer in callbacks(self.trainer)):
            self.correction.require_transition()
        if self._seed is None:
            self._seed = self.trainer.strategy.broadcast(torch.initial_seed())

    def on_train_epoch_start(self) -> None:
        """Begin each epoch from a random state of its own, so that a fit that was killed resumes bit for bit.

        Phases do the same, so that stage one draws what a fit without them draws.
        """
        if self._seed is not None and not any(getattr(peer, "reseeds", False) for peer in callbacks(self.trainer)):
            reseed(self.trainer, self._seed)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the fit's seed."""
        checkpoint["fit_seed"] = self._seed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the fit's seed up."""
        self._seed = checkpoint.get("fit_seed")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the corrected loss on the noisy labels."""
        return self._noisy_step(batch, self.train_metrics)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Measure loss and accuracy on the noisy labels."""
        self._noisy_step(batch, self.val_metrics)

    def _noisy_step(self, batch: Any, metrics: NoisyMetrics) -> Tensor:
        labels = batch[1]
        logits, of_samples = self.logits_of(batch)
        if not (self._outputs_checked or torch.compiler.is_compiling()):  # looking at values would break a graph in two
            require_logits(logits)
            self._outputs_checked = True
        loss = self.correction(logits, labels, **of_samples)
        metrics.update(loss, logits, labels, of_samples)
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the training metrics, before the callbacks that monitor them, and how far a T that learns is off."""
        self._log_metrics("train", self.train_metrics)
        self._log_memorisation()
        transition, true = self.correction.T, data_attribute(self.trainer, "transition")
        if true is None or transition is None or transition.is_identity:
            return
        if any(parameter.requires_grad for parameter in transition.parameters()):
            error = relative_l1_error(transition.to_dense().detach(), true.to(self.device))
            self.log("transition_error", error, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics, and the accuracy on clean labels that follows from them."""
        self._log_metrics("val", self.val_metrics)
        counts = self.val_metrics.counts
        if counts is None:
            return
        found = self.estimate_clean_accuracy(counts.compute())
        counts.reset()
        names = [f"val_clean_accuracy{bound}" for bound in ("", "_low", "_high")]
        if found is None:  # what a callback monitors must be there from the first validation on
            self.trainer.callback_metrics.update(dict.fromkeys(names, torch.tensor(torch.nan)))
            return
        for name, value in zip(names, (found.value, *found.interval()), strict=True):
            # The same on every process, so that their largest is it, to the last bit.
            self.log(name, value.float(), sync_dist=True, reduce_fx="max")

    def estimate_clean_accuracy(self, counts: Tensor, transition: Transition | None = None) -> Estimate | None:
        """Estimate the accuracy on clean labels from counts of noisy ones.

        Args:
            counts: How often held-out samples have (noisy label, predicted clean class), shape ``(C, C)``.
            transition: T, where the correction has none.

        Returns:
            The estimate, with an interval from sampling and, where a callback knows them, from the standard errors of
            T-hat; None without a T that is the same for every sample, with one that is singular, or with fewer than two
            samples.
        """
        transition = self.correction.class_conditional or transition
        if transition is None or int(counts.sum()) < 2:
            return None
        error = standard_error_of(self.trainer, transition.to_dense()) if self._trainer is not None else None
        try:
            return clean_accuracy(counts, transition, error)
        except BadValue:
            return None

    def _log_metrics(self, part: str, metrics: NoisyMetrics) -> None:
        metrics.measure()
        self.log(f"{part}_loss", metrics.loss, prog_bar=True)
        self.log(f"{part}_accuracy", metrics.accuracy, prog_bar=True)

    def _log_memorisation(self) -> None:
        memorisation = self.train_metrics.memorisation
        assert memorisation is not None
        if memorisation.update_called:  # on every process or on none
            found = memorisation.compute()
            correction = self.correction
            with_trusted, self.train_metrics.with_trusted = self.train_metrics.with_trusted, False
            if with_trusted or not (isinstance(correction, ForwardCorrection) and correction.loss.is_cross_entropy):
                del found["loss_floor"]
            self.log_dict({f"train_{name}": value for name, value in found.items()}, sync_dist=True)
            memorisation.reset()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Measure p(clean | x) on clean labels."""
        inputs, labels, *_ = batch
        logits = self(inputs)
        self.test_metrics.update(logits, labels)
        self.test_loss.update(nn.functional.cross_entropy(logits.float(), labels, reduction="none"))

    def on_test_epoch_end(self) -> None:
        """Log the test metrics, which count each sample once on any number of processes."""
        self.log_dict(self.test_metrics)
        self.log("test_loss", self.test_loss)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return p(clean | x), ``(N, C)``."""
        inputs = batch[0] if isinstance(batch, list | tuple) else batch
        return self(inputs).float().softmax(dim=1)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Part the parameters for an optimizer: the network's, its encoder's, and T's, where the correction learns T.

        The encoder has a group with the rate ``encoder_lr``, where that is given. T's group has no weight decay, which
        would pull T towards a fixed matrix, and the rate ``transition_lr``.

        Returns:
            From one to three groups: the first is the network's, or the head's.

        Example:
            >>> network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
            >>> model = NoisyLabelClassifier(network, num_classes=3, encoder_lr=1e-5)
            >>> [(len(group["params"]), group.get("lr")) for group in model.parameter_groups()]
            [(2, None), (2, 1e-05)]
        """
        learnt = [parameter for parameter in self.correction.parameters() if parameter.requires_grad]
        encoder = [] if self.encoder_lr is None else encoder_parameters(self.backbone, self.head_layer)
        apart = {id(parameter) for parameter in [*learnt, *encoder]}
        groups: list[dict[str, Any]] = [{"params": [p for p in self.parameters() if id(p) not in apart]}]
        if encoder:
            groups.append({"params": encoder, "lr": self.encoder_lr})
        if learnt:
            rate = {} if self.transition_lr is None else {"lr": self.transition_lr}
            groups.append({"params": learnt, "weight_decay": 0.0, **rate})
        return groups

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimizer and the scheduler; called afresh at the beginning of each stage."""
        groups = self.parameter_groups()
        optimizer = self.optimizer(self.parameters() if len(groups) == 1 else groups)
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        monitor = getattr(scheduler, "monitor", None)  # Lightning's ReduceLROnPlateau names the metric it watches
        if monitor is None:
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler}}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": monitor}}


def network_with_head(module: LightningModule) -> tuple[nn.Module, str | None]:
    """Return the network of a module that has the head in it, and the head's name there: None for the last nn.Linear.

    Args:
        module: Any module; one may name its head by an attribute ``head_layer``.

    Example:
        >>> network_with_head(NoisyLabelClassifier(nn.Linear(4, 3), num_classes=3))
        (Linear(in_features=4, out_features=3, bias=True), None)
    """
    network = module.backbone if isinstance(module, NoisyLabelClassifier) else module
    return network, getattr(module, "head_layer", None)
