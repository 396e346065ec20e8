"""What each route answers, for the OpenAPI document: models that describe, and that tests hold answers to."""
