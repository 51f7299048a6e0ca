"""What the tests of interrupted runs compare: the bytes of everything that a run leaves."""

import hashlib


def checksums(out, hidden=True):
    """Checksum of every file of the participants that is not a log or tells of this run.

    Parameters
    ----------
    out : Path
        The output folder.
    hidden : bool
        Whether to take what a writer that was stopped left under a hidden name, too.
    """
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.glob('sub-*/**/*'))
        if path.is_file()
        and (hidden or not path.name.startswith('.'))
        and 'log' not in path.parts
        and 'desc-about' not in path.name
    }
