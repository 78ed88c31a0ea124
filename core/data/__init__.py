"""Images, labels, folders, crops and loaders; numpy only."""
