"""What practice changed in a policy, and how its episodes fail: the numbers, their pictures and their words."""
