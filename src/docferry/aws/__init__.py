"""The serverless road: the function's handler, its template, its package, its deployment."""
