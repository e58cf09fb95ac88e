"""How weights are rounded together, with regard to what the layer reads: GPTQ."""
