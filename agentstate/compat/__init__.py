"""Other systems' names and signatures over this core, so that code written for them runs here."""
