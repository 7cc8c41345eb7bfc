"""`python -m data_tools COMMAND`: from image files to the WebDataset shards that training reads."""
