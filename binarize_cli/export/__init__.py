"""A packed file as other libraries and runtimes read it; each export is held against its packed file."""
