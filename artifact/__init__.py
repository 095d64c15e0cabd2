"""What passes between making and serving: manifest, contract, stores."""
