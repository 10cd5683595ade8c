"""Programs that use a Ceph cluster. They run in processes of their own, by the interpreter that has the
modules rados and rbd of the distribution, and import nothing of targetd but the pure package nbd."""
