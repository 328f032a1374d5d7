"""Dataset name -> loaders: `sources` finds and lists, `decode` reads, `loaders` makes batches."""
