"""Usage errors of the commands in one line, in the names of their options. Standard library."""

import argparse
import re
from typing import NoReturn

FIELDS = r'^\w+|(?<= )[a-z]+_[a-z_]+(?=[ :,])'
"""Where a message may name a field: at its start, and wherever a word has an underscore."""


class OneLineParser(argparse.ArgumentParser):
    """Usage errors in one line; the whole list of options would hide the message."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f'{self.prog}: error: {" ".join(message.split())}\n')

    def option(self, name: str) -> str:
        """The option of a setting; of several names the longest."""
        options = {action.dest: action.option_strings for action in self._actions}
        return max(options.get(name) or [name], key=len)

    def in_options(self, message: str) -> str:
        """A message that names fields, in the names of the options that give them.

        >>> parser = OneLineParser('program')
        >>> _ = parser.add_argument('--voxel-size')
        >>> parser.in_options('voxel_size must be above 0, not -1')
        '--voxel-size must be above 0, not -1'
        """
        return re.sub(FIELDS, lambda name: self.option(name[0]), message)
