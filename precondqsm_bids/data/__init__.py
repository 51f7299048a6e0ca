"""Files that ship with the package: report template, bibliography."""
