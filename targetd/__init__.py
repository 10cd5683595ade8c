"""targetd: an iSCSI target for the servers that others have left behind."""

__version__ = '0.1.0'
