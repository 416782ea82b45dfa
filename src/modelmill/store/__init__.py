"""Where artifacts and runs live: any S3-compatible bucket, and nothing else."""
