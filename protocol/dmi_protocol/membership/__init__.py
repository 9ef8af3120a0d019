"""Who is here? SWIM with Lifeguard: constant load for each node, and no verdict on one node's word alone."""
