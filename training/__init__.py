"""What is run and set stands in this folder; what it is made of, in the folders below; see docs/architecture.md."""
