#include "cpu/training.inl"
