"""The routes and their dialects: TEI, Open Inference Protocol V2, OpenAPI, pages."""
