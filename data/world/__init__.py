"""The picture world: coloured shapes on varied backgrounds, and true sentences about them, all drawn from one seed."""
