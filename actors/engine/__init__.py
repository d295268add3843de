"""The engine of one worker: scheduler, batch, runner, sampler. Knows torch, never Ray."""
