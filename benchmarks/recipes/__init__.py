"""Does every recipe work out of the box, with the learning rate that a user already has?"""
