"""The steps an instance takes through the appliance. Stages never import each other: they meet in the journal."""
