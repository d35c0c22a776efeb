"""From a config to a trainer and back: parser, run directories, loggers, the lean loop."""
