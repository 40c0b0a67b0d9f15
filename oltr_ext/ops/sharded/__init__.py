"""The ops over a bank that several processes hold: see `oltr_ext.ops.Shard`."""
