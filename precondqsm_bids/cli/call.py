"""One call of the app: what travels from the command line to the last message."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from precondqsm_bids.cli.progress import new_log_name
from precondqsm_bids.config import Settings


@dataclass(frozen=True)
class Call:
    """One call of the app.

    Attributes
    ----------
    settings : Settings
        The command line, parsed.
    command : str
        The command line itself, for the reports.
    environment : mapping
        The environment before it was repaired for this process; that of jobs.
    log_name : str
        Name of the folders of the log and of the crash files.
    """

    settings: Settings
    command: str
    environment: Mapping[str, str]
    log_name: str = field(default_factory=new_log_name)

    @property
    def log_dir(self) -> Path:
        """Folder of the log."""
        return self.settings.output_dir / 'logs' / self.log_name
