"""The catalogue on two kernels, side by side in labs."""
