"""Write a cell to a model folder, and upload it to the hub, also under the names of transformers."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch

from ..distributed.whole import whole_tensor, write_whole
from ..errors import Error
from ..layers.packed.modules import float_names
from ..storage.atomic import atomic_dir
from ..storage.lazy_tensors import LazyTensor
from ..storage.model_folder import write_model_folder
from .network import RecurrentNetwork
from .validation import check_tensor_names

Result = TypeVar("Result")


class SavedNetwork(RecurrentNetwork):
    """A network that is saved as a model folder."""

    def save(self, folder: str | Path) -> None:
        """Write a model folder: config, parameters and extra files (:mod:`msrnn.storage.model_folder`).

        All ranks of a split cell have to call this. Rank 0 writes the whole model.

        Args:
            folder: a path that does not exist, or an empty folder.

        Raises:
            Error: the folder exists and is not empty, or it cannot be written; a module has been changed, so that the tensors
                are not those of the config.
        """
        tensors = {name: whole_tensor(self.rank_part, name, x) for name, x in self.state_dict().items()}
        with torch.device("meta"):
            expected = type(self)(self.config).state_dict().keys()
        check_tensor_names(float_names(tensors), expected)

        def write(tensors: Mapping[str, LazyTensor]) -> None:
            with atomic_dir(folder) as target:
                write_model_folder(target, self.config.to_dict(), tensors, self.extra_files)

        write_whole(self.rank_part, tensors, write)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write a model folder: another name of :meth:`save`. Unlike in transformers a folder with files is refused.

        The folder has the format of this library. ``converters.convert(…, to="hf")`` writes one that transformers loads.

        Raises:
            Error: as :meth:`save`.
        """
        self.save(save_directory)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload a cell of msrnn",
    ) -> str:
        """Upload a model folder to a repository of the hub; ``converters.load(repo_id)`` reads it from there.

        The repository is created if it does not exist. Files of the same names are replaced, others stay. The folder is first
        written to a temporary place of the disk.

        Args:
            repo_id: ``owner/name``, or ``name`` for the owner of the token.
            private: visibility of a new repository; None: as set for the owner.
            token: access token; None: the one that ``hf auth login`` has stored.
            commit_message: of the commit.

        Returns:
            The address of the commit.

        Raises:
            Error: the hub refuses the repository or the upload, or cannot be reached; the cell is split over the ranks of a
                process group; also the errors of :meth:`save`.
        """
        if self.rank_part is not None:
            raise Error("push_to_hub: every rank of a split cell would upload; expected save, then an upload by one rank")
        from huggingface_hub import HfApi  # deferred, because it is imported slowly

        api = HfApi(token=token)
        found = _call(repo_id, lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save(folder)

            def upload() -> str:
                sent = api.upload_folder(repo_id=found.repo_id, folder_path=folder, commit_message=commit_message)
                return str(sent.commit_url)

            return _call(repo_id, upload)


def _call(repo_id: str, request: Callable[[], Result]) -> Result:
    """Return the answer of the hub.

    Raises:
        Error: there is none.
    """
    try:
        return request()
    except Exception as error:  # the errors of the HTTP library differ between versions
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Error(f"cannot upload to {repo_id!r} on the hub ({reason})") from None
