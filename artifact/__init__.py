"""What passes between making and serving an artifact: manifest, contract, stores."""
