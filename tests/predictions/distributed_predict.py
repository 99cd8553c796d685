"""A prediction pass on two CPU processes, run as a script by test_writer.py: a file, T-hat, and what each gathers."""

import sys
import warnings
from pathlib import Path

import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1]))
from toy import ToyData, classifier, trainer

from noisylightning.estimators.standalone import estimate_with_trainer
from noisylightning.predictions import Predictions, PredictionWriter, gather


def main() -> None:
    folder = Path(sys.argv[1])
    warnings.simplefilter("ignore")
    run = trainer(
        folder, [PredictionWriter(folder / name) for name in ("p.npz", "p.parquet")], devices=2, strategy="ddp"
    )
    data = ToyData(num_train=97)
    run.predict(classifier(), DataLoader(data.train, batch_size=16))
    transition = estimate_with_trainer(run, classifier(), ToyData(num_train=97), None, folder / "T.npy")

    # Shares of 5 and 2 samples, of which both processes have the one at place 3.
    index = torch.tensor([[6, 0, 3, 2, 5], [3, 4, -9, -9, -9]][run.global_rank])
    index = index[index >= 0]
    share = Predictions(
        index[:, None] * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64),
        index % 3,
        index=index,
        held_out=index > 3,
        features=index[:, None].half(),
        class_names=["a", "b", "c"],
    )
    gathered = list(gather(share, size=4))
    whole = Predictions.concatenate(gathered)
    torch.save(
        {
            "transition": transition,
            "sizes": torch.tensor([len(batch) for batch in gathered]),
            **{name: value for name, value in vars(whole).items() if isinstance(value, torch.Tensor)},
        },
        folder / f"rank{run.global_rank}.pt",
    )
    torch.distributed.destroy_process_group()  # an exit with its threads alive may abort


if __name__ == "__main__":
    main()
