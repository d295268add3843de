"""Training an adapter on what workflows say: plain torch and PEFT; `distributed` alone knows Ray."""
