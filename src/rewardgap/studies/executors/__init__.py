"""Who runs the jobs of a study: this process, several of this machine, a Ray cluster, or all who share the folder."""
