"""The routes: text-embeddings-inference's dialect (tei), Open Inference Protocol V2 (v2), BentoML's clients', pages."""
