r"""Uploads of saved pipelines, models and schedulers, in one commit each."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from .cards import CONFIG_FILES, build_model_card, describe_folder
from .standalone import export_standalone


class HubError(RuntimeError):
    """The Hub refused or could not be reached; nothing was committed."""


def push_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
    subfolder: str | None = None,
    standalone: bool = False,
) -> str:
    r"""Publishes what `save_pretrained` wrote, with a model card; a card that is there already is kept.

    Args:
        folder: Folder of a pipeline, model or scheduler of this package.
        repo_id: Repository, `name` or `owner/name`; made if absent.
        private: Whether a new repository is private.
        revision: Branch to commit to; made if absent.
        create_pr: Whether to open a pull request instead.
        token: Access token; by default the stored one.
        commit_message: By default, what is uploaded.
        subfolder: Folder inside the repository; no card is written then.
        standalone: Whether the folder was written by `export_standalone`, for the card.

    Returns:
        Address of the commit, or of the pull request.

    Raises:
        ValueError: The folder holds nothing of this package, or the repository's name is not one.
        HubError: The upload failed; the repository is as it was.
    """
    folder = Path(folder)
    class_name, _ = describe_folder(folder)
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        operations = _operations(folder, subfolder)
        if subfolder is None:
            operations += _card_operations(api, folder, repo_id, revision, standalone)
        commit = api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message or f"Upload {class_name}",
            revision=revision,
            create_pr=create_pr,
        )
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is not the name of a repository: {_reason(error)}.") from error
    except (HfHubHTTPError, OSError) as error:
        raise HubError(f"Nothing was committed to {repo_id}: {_reason(error)}.") from error
    return commit.pr_url or commit.commit_url


def _reason(error: Exception) -> str:
    """What an error says first, without the period."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _operations(folder: Path, subfolder: str | None) -> list[CommitOperationAdd]:
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "README.md")
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    return [CommitOperationAdd(prefix + file.relative_to(folder).as_posix(), _content(file)) for file in files]


def _content(file: Path) -> str | bytes:
    """A file's path, or its text where that is not to be published as it stands."""
    text = config_without_path(file) if file.name in CONFIG_FILES else None
    return str(file) if text is None else text.encode()


def config_without_path(file: Path) -> str | None:
    """A configuration without the path on this machine that diffusers notes when it loads; None if it notes none."""
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.pop("_name_or_path", None) is None:
        return None
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def _card_operations(
    api: HfApi, folder: Path, repo_id: str, revision: str | None, standalone: bool
) -> list[CommitOperationAdd]:
    """The card of the folder, if it has one, or a new one; nothing where the repository has one."""
    if api.file_exists(repo_id, "README.md", revision=revision):
        return []
    card = build_model_card(folder, repo_id, standalone)
    written = folder / "README.md"
    text = written.read_text(encoding="utf-8") if written.is_file() and not standalone else str(card)
    return [CommitOperationAdd("README.md", text.encode())]


def push_to_hub(
    self: Any,
    repo_id: str,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
    safe_serialization: bool = True,
    variant: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    standalone: bool = False,
) -> str:
    r"""Publishes this pipeline, model or scheduler on the Hub with a model card; a card that is there already is kept.

    Args:
        repo_id: Repository, `name` or `owner/name`; made if absent.
        commit_message: By default, what is uploaded.
        private: Whether a new repository is private.
        token: Access token; by default the stored one.
        create_pr: Whether to open a pull request instead of committing.
        safe_serialization: Whether to save weights as safetensors.
        variant: Name of a variant of the weights, such as `fp16`.
        subfolder: Folder inside the repository; no card is written then.
        revision: Branch to commit to; made if absent.
        standalone: Whether the source travels along, for plain diffusers with `trust_remote_code=True`.

    Returns:
        Address of the commit, or of the pull request.
    """
    with tempfile.TemporaryDirectory() as folder:
        if standalone:
            export_standalone(self, folder)
        elif "Scheduler" in type(self).__name__:
            self.save_pretrained(folder)
        else:
            self.save_pretrained(folder, safe_serialization=safe_serialization, variant=variant)
        return push_folder(
            folder,
            repo_id,
            private=private,
            revision=revision,
            create_pr=create_pr,
            token=token,
            commit_message=commit_message,
            subfolder=subfolder,
            standalone=standalone,
        )
