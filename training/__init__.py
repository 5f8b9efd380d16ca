"""Commands and settings of the training are in this folder, their parts in the folders below; docs/architecture.md."""
