"""How the model of ct-lesion is made: lungs, simulated lesions, the network, its training and its export."""
