"""The ops over a bank that passes by in blocks: see `oltr_ext.ops.StreamedBank`."""
