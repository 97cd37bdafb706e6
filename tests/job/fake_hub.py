"""A hub that only notes what is uploaded."""

from pathlib import Path
from types import SimpleNamespace

from huggingface_hub.utils import filter_repo_objects


class Hub:
    """What the job asks of the hub, and one that refuses the upload."""

    def __init__(self, monkeypatch, refusal=None):
        self.uploads = []
        self.further_files = {}
        self.branches = ["main"]
        self.refusal = refusal
        monkeypatch.setattr("gpt2_hf.job.main_job.ensure_hub_or_offline", lambda: True)
        monkeypatch.setattr("transformers.trainer.hf_api", lambda: self)
        monkeypatch.setattr("gpt2_hf.runtime.hub.upload_folder", self.upload_folder)
        monkeypatch.setattr("gpt2_hf.runtime.hub.create_commit", self.create_commit)
        monkeypatch.setattr("gpt2_hf.runtime.hub.create_branch", self.create_branch)

    def create_repo(self, name, **options):
        return SimpleNamespace(repo_id=f"someone/{name}")

    def create_branch(self, repo_id, branch, **options):
        self.branches.append(branch)

    def create_commit(self, repo_id, operations, **options):
        self.further_files |= {one.path_in_repo: Path(one.path_or_fileobj).read_bytes() for one in operations}

    def upload_folder(self, repo_id, folder_path, ignore_patterns=(), revision=None, **options):
        if self.refusal is not None:
            raise self.refusal
        if (revision or "main") not in self.branches:
            raise OSError(f"404: there is no branch {revision}")
        names = sorted(path.name for path in Path(folder_path).iterdir())
        self.uploads.append((repo_id, list(filter_repo_objects(names, ignore_patterns=list(ignore_patterns)))))
        return SimpleNamespace(commit_url="https://hub/commit")
