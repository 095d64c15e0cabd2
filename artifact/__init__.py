"""What passes between the half that makes an artifact and the half that serves it: manifest, contract, stores."""
