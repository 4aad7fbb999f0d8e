"""Batches of in-memory images for Lightning, in an order that depends on nothing but the seed and the epoch."""

from typing import Any

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from fastode.train.data import ImageData, Images, as_float


class _Batches(Dataset[Tensor]):
    """Indexes a whole batch at once: one gather instead of a stack of single images."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return as_float(self.images.pixels[index])

    def __getitems__(self, indices: list[int]) -> Tensor:
        return as_float(self.images.pixels[indices])


def _whole(batch: Any) -> Any:
    return batch


class ImageModule(L.LightningDataModule):
    """Loaders of the training and validation images of ``data``.

    The sampler is torch's distributed one also in a single process: Lightning tells it the epoch, and it then gives
    the order of that epoch, so a resumed run sees the batches that the interrupted one would have seen.
    """

    def __init__(self, data: ImageData, batch_size: int, seed: int) -> None:
        super().__init__()
        self.data = data
        self.batch_size = batch_size
        self.seed = seed

    def _loader(self, images: Images, shuffle: bool) -> DataLoader[Tensor]:
        trainer = self.trainer
        sampler: DistributedSampler[Any] = DistributedSampler(
            _Batches(images),
            num_replicas=1 if trainer is None else trainer.world_size,
            rank=0 if trainer is None else trainer.global_rank,
            shuffle=shuffle,
            seed=self.seed,
        )
        return DataLoader(_Batches(images), batch_size=self.batch_size, sampler=sampler, collate_fn=_whole)

    def train_dataloader(self) -> DataLoader[Tensor]:
        return self._loader(self.data.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Tensor]:
        return self._loader(self.data.val, shuffle=False)
