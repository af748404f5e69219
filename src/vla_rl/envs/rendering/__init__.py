"""Off-screen rendering: the GL context, the camera, light meshes."""
