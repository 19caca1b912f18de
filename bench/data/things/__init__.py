"""THINGS-fMRI's own files: the trials and images, the voxels with their ROIs, and the responses."""
